"""Models to and from a model hub; only settings and safetensors are ever loaded from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_astro.errors import InputError
from vae_astro.export.weights import CONFIG, WEIGHTS, load_safetensors
from vae_astro.vae import VAE

__all__ = ["load_from_hub", "push_to_hub"]

SHARED = (CONFIG, WEIGHTS, "README.md", "*.onnx", "figures/*.png")
"""What is uploaded: nothing that a pickle could hide in."""


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an export to a model hub, where the repository is made if it is not there.

    Parameters
    ----------
    folder : str or Path
        That ``scripts/export.py`` wrote, with safetensors in it. ``.ckpt`` and ``.pt2`` stay here.
    repo : str
        ``owner/name``.
    private : bool
        Of a repository that is made now.
    revision : str, optional
        Branch; the hub's first one where absent.
    token : str, optional
        Else that of ``hf auth login`` or of the variable ``HF_TOKEN``.

    Returns
    -------
    str
        Where the commit can be looked at.

    Raises
    ------
    InputError
        The folder does not load as a model, the extra is not installed, or the hub refuses.
    """
    folder = Path(folder).expanduser()
    load_safetensors(folder)  # what cannot be loaded from there need not go there
    hub = _hub()
    api = hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(SHARED),
            revision=revision,
            commit_message=f"Model of vae_astro: {folder.name}",
        )
    except Exception as error:  # of the hub, of its checks of names, and of the network
        raise _refused(f"upload of {folder} to {repo}", error) from error
    return str(getattr(commit, "commit_url", commit))


def load_from_hub(repo: str, revision: str | None = None, *, token: str | None = None) -> VAE:
    """The model of a hub's repository.

    ``config.json`` and ``model.safetensors`` are fetched and nothing else, so that nothing that is
    there can run: `load_safetensors`.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    revision : str, optional
        Branch, tag or commit; name a commit to get the same weights for ever.
    token : str, optional
        As in `push_to_hub`.

    Raises
    ------
    InputError
        The extra is not installed, the hub refuses or cannot be reached, or as `load_safetensors`.
    """
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS], token=token
        )
    except Exception as error:  # of the hub, of its checks of names, and of the network
        at = "" if revision is None else f" at {revision}"
        raise _refused(f"download of {repo}{at}", error) from error
    return load_safetensors(folder)


def _refused(what: str, error: Exception) -> InputError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
    return InputError(
        f"{what} failed: {reason}; check the name (owner/name), the revision, the network, and "
        "that you are logged in (hf auth login)"
    )


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            "huggingface_hub is not installed; it comes with the extra hub: "
            "pip install 'vae-astro[hub]'"
        ) from error
    return huggingface_hub
