"""Which model the settings mean, vouched for as they want it: whole, and signed where keys are named."""

from pathlib import Path

from models import registry, signing
from models.signing import Keys
from service.settings import Settings


def keys(settings: Settings) -> Keys | None:
    """Return the keys that must have signed a model, None where no signature is wanted.

    Raises:
        UsageError: A file of `model_keys` cannot be used.
    """
    return signing.read_keys(settings.model_keys)


def model_path(settings: Settings) -> Path:
    """Return the file of the model to serve.

    Raises:
        UsageError: See `keys`.
        ArtifactError: There is none, or it is not whole or not signed as it must be.
    """
    return registry.model_path(settings.model, settings.registry_dir, keys(settings))


def candidate_path(settings: Settings) -> Path:
    """Return the file of the candidate, held to the same; the settings name one."""
    return registry.model_path(settings.candidate_model, settings.registry_dir, keys(settings))
