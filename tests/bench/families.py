"""scikit-learn's random forest and logistic regression, trained on the rows and weights of the large model."""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

Rows = NDArray[np.float32]


def random_forest(rows: Rows, is_phishing: NDArray[np.bool_], weight: NDArray[np.float64]) -> RandomForestClassifier:
    """Return a forest of 200 trees of at least 20 rows a leaf; it reads NaN as it is."""
    forest = RandomForestClassifier(
        n_estimators=200, min_samples_leaf=20, max_features="sqrt", max_samples=0.3, n_jobs=-1, random_state=1
    )
    forest.fit(rows, is_phishing, sample_weight=weight)
    # Threads for single rows cost milliseconds: it is timed, like all others, on one.
    return forest.set_params(n_jobs=1)


def logistic_regression(rows: Rows, is_phishing: NDArray[np.bool_], weight: NDArray[np.float64]) -> Pipeline:
    """Return a regression on compressed magnitudes, with a column for each feature's being unknown.

    Amounts and times spread over many powers of ten, which no linear model fits: asinh is linear near 0 and
    logarithmic far from it, on both sides.
    """
    pipeline = make_pipeline(
        FunctionTransformer(np.arcsinh),
        SimpleImputer(strategy="median", add_indicator=True),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=300),
    )
    pipeline.fit(rows, is_phishing, logisticregression__sample_weight=weight)
    return pipeline


def margins(model: RandomForestClassifier | Pipeline, rows: Rows) -> NDArray[np.float64]:
    """Return what orders rows by risk: log-odds where the model has them, else the share of votes."""
    if hasattr(model, "decision_function"):
        return np.asarray(model.decision_function(rows))
    return np.asarray(model.predict_proba(rows)[:, 1])
