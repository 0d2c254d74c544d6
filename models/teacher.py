"""The teacher: the mean of several LightGBM models, in one LightGBM text, as good as the validation period can tell.

Members differ by seed, and each tree by the rows and the features it is given: where training and later months differ
by how accounts were collected, one model overfits in its own way, and the mean of several does so less (L. Breiman,
Bagging Predictors, 1996). Every setting was chosen on three origins: learnt before 2018-01, 2018-04 or 2018-07, judged
from there to the end of the validation period. `python -m tests.bench.bench_teacher` repeats the comparisons.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features import schema
from features.table import DAY_S
from models.dataset import BACKGROUND
from models.learning import FIXED, Parts, Say, Settings, trained_columns

if TYPE_CHECKING:
    from lightgbm import Booster

LEFT_OUT = ("_1h", "_7d", "_max")
"""Parts of the names of columns the teacher does not read: they repeat, at another half-life, what the others tell, and
trees that may choose among all of them learn more of the accounts that they have seen."""

BACKGROUND_WEIGHT, COLD_WEIGHT = 2.0, 0.5
"""Times what `learning` gives background rows and cold copies."""
HALF_LIFE_DAYS = 365.0
"""Of a labelled row's weight, by its age at the end of training: what fraud looks like changes."""

TEACHER: Settings = {
    "objective": "binary",
    "n_members": 4,
    "n_trees": 250,
    "learning_rate": 0.1,
    "num_leaves": 31,
    "max_depth": 6,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.3,
    "lambda_l2": 50.0,
    "bagging_fraction": 1.0,
    "pos_bagging_fraction": 0.8,
    "neg_bagging_fraction": 0.35,
}

QUICK_TEACHER: Settings = TEACHER | {"n_members": 1, "n_trees": 120, "learning_rate": 0.2}
"""Within 25 s on a core that others use too."""


def fit(
    parts: Parts,
    settings: Settings,
    *,
    seed: int,
    say: Say,
    weight: NDArray[np.float64] | None = None,
    read: NDArray[np.bool_] | None = None,
) -> "Booster":
    """Return a teacher of all trained columns.

    Args:
        parts: What is learnt from.
        settings: LightGBM's, the trees of a member as `n_trees`, and how many members as `n_members`.
        seed: Of everything drawn; the same seed gives the same text.
        say: Told of the progress.
        weight: Of each row of the parts; None takes `weights`.
        read: Which of the trained columns it reads; None takes `read_columns`.
    """
    import lightgbm

    weight, read = weights(parts) if weight is None else weight, read_columns() if read is None else read
    names = [schema.FEATURES[i].name for i in trained_columns().tolist()]
    rows = parts.rows.copy()
    # A constant column is never split on, and never drawn in a better one's place; the model keeps its name.
    rows[:, ~read] = 0.0
    n_members, n_trees = int(settings["n_members"] or 1), int(settings["n_trees"] or 0)
    own = ("n_members", "n_trees")
    asked = FIXED | {name: value for name, value in settings.items() if name not in own}
    members = []
    for i in range(n_members):

        def tell(environment: Any, n_before: int = i * n_trees) -> None:
            say(n_before + environment.iteration + 1, n_members * n_trees)

        data = lightgbm.Dataset(rows, parts.is_phishing, weight=weight, feature_name=names)
        members.append(lightgbm.train(asked | {"seed": seed + 1_000 * i}, data, n_trees, callbacks=[tell]))
    return mean(members)


def read_columns() -> NDArray[np.bool_]:
    """Return which of the trained columns the teacher reads."""
    names = [schema.FEATURES[i].name for i in trained_columns().tolist()]
    return np.array([not any(part in name for part in LEFT_OUT) for name in names])


def weights(parts: Parts, *, cold_weight: float = COLD_WEIGHT) -> NDArray[np.float64]:
    """Return what each row weighs: learning's weight, less with age, and by what the row is."""
    days = (parts.time.max() - parts.time) / DAY_S
    aged: NDArray[np.float64] = np.where(
        parts.account == BACKGROUND, BACKGROUND_WEIGHT, 2.0 ** -(days / HALF_LIFE_DAYS)
    )
    return parts.weight * aged * np.where(parts.is_cold, cold_weight, 1.0)


def mean(members: "list[Booster]") -> "Booster":
    """Return one model whose margin is the mean of the members' margins.

    LightGBM has no such operation in its interface; its text is trees one after another, so they are put together
    with their leaves divided by the number of members.
    """
    import lightgbm

    texts = [member.model_to_string(num_iteration=-1) for member in members]
    head, end = texts[0].split("tree_sizes=")[0], "end of trees\n"
    trees = [tree for text in texts for tree in text[text.index("Tree=") : text.index(end)].split("Tree=")[1:]]
    blocks = [_block(i, tree, len(members)) for i, tree in enumerate(trees)]
    sizes = " ".join(str(len(block)) for block in blocks)
    tail = texts[0][texts[0].index(end) :]
    return lightgbm.Booster(model_str=f"{head}tree_sizes={sizes}\n\n{''.join(blocks)}{tail}")


def _block(number: int, tree: str, n_members: int) -> str:
    lines = tree.split("\n")
    for i, line in enumerate(lines):
        name, _, values = line.partition("=")
        if name in ("leaf_value", "internal_value"):
            shares: NDArray[np.float64] = np.array(values.split(), dtype=np.float64) / n_members
            lines[i] = f"{name}={' '.join(map(repr, shares.tolist()))}"
    return f"Tree={number}\n" + "\n".join(lines[1:])
