"""The upload, with huggingface_hub: one commit per repository, so that nothing is visible before everything is
there.

Large files are sent one after another; the Hub stores each under its hash before the commit that names it. After an
interruption the same command does not send again what has arrived: the Hub answers that it has the file (LFS) or
its chunks (xet). If nothing has changed, no commit is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from pipeline import invocation, network
from pipeline.config.export import PublishConfig
from pipeline.errors import StageError
from pipeline.files import readable_bytes
from stages.publish.uploads import CARD, Opener, Upload, size

AGAIN = "run the same command again: files that have arrived are not sent again"
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"
OURS = {
    "model": (
        "model*.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
    ),
    "dataset": ("data/train-*.parquet", "data/eval-*.parquet"),
}
"""Files that an earlier upload may have left and that would be loaded together with the new ones."""


def check_login(repository: str) -> None:
    """Raises `StageError` where there is no token for the Hub. Asks no network."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise StageError("the Hub needs a login for uploads", where=repository, hint=LOGIN)


def send(upload: Upload, progress: Opener, say: Callable[[str], None]) -> str:
    """Uploads in one commit and returns its address. Raises `StageError`, in which case nothing is visible."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # in a log file bars are noise; our progress display prints lines there
    check_login(upload.repository)
    api = HfApi(library_name="tutelage")
    repository, kind = upload.repository, upload.kind
    contents = upload.contents
    with _explained(repository):
        RepoCard(upload.card).validate(repo_type=kind)  # before the files, because the Hub refuses bad metadata
        api.create_repo(repository, repo_type=kind, private=upload.private, exist_ok=True)
        # An older repository keeps its visibility whatever create_repo asks for.
        if upload.private and not api.repo_info(repository, repo_type=kind).private:
            raise StageError(
                f"{repository} is already public, but a private upload was requested",
                hint="name another repository, make this one private, or give --public",
            )
        stale = [
            name
            for name in api.list_repo_files(repository, repo_type=kind)
            if name not in contents and any(fnmatch(name, pattern) for pattern in OURS[kind])
        ]
        operations: list[Any] = []
        say(
            f"uploading {len(contents)} files ({readable_bytes(sum(map(size, contents.values())))}) to {repository}"
        )
        with progress(f"upload {repository}", total=len(contents)) as bar:
            for name, content in contents.items():
                operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                if name != CARD:
                    api.preupload_lfs_files(repository, [operation], repo_type=kind, free_memory=False)
                operations.append(operation)
                bar.advance()
        for name in stale:
            say(f"removing {name}, which an earlier upload left")
            operations.append(CommitOperationDelete(path_in_repo=name))
        commit = api.create_commit(repository, operations, commit_message="Upload by tutelage", repo_type=kind)
    return str(commit.commit_url)


def collect(publish: PublishConfig, uploads: Sequence[Upload]) -> str | None:
    """Adds the uploads to the recipe's collection and returns its address; None if the recipe names no
    collection."""
    if publish.collection is None:
        return None
    from huggingface_hub import HfApi

    api = HfApi(library_name="tutelage")
    owner = uploads[-1].repository.partition("/")[0]
    private = all(upload.private for upload in uploads)
    with _explained(f"{owner}/{publish.collection}"):
        collection = api.create_collection(publish.collection, namespace=owner, private=private, exists_ok=True)
        for upload in uploads:
            api.add_collection_item(collection.slug, upload.repository, upload.kind, exists_ok=True)
    return str(collection.url)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns the client's exceptions into `StageError`."""
    from httpx2 import HTTPError, TransportError
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise StageError("the Hub needs a login for uploads", where=where, hint=LOGIN) from None
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        raise StageError(f"the Hub refused: {error}", where=where, hint=LOGIN if refused else AGAIN) from error
    except ValueError as error:  # metadata that the Hub refuses
        hint = "correct publish.license, publish.rankings_license or the names in the recipe"
        raise StageError(f"the Hub refused the card: {error}", where=where, hint=hint) from error
    except (HTTPError, OSError, RuntimeError) as error:  # connection errors; hf_xet and LFS raise others than httpx
        if isinstance(error, TransportError) and not network.hub_is_reachable():
            raise StageError(
                f"no network: {network.hub_address()} cannot be reached, and the upload needs it",
                where=where,
                hint=f"{AGAIN}; `{invocation.command('publish', '--dry-run')}` needs no network",
            ) from error
        causes = dict.fromkeys((str(error), str(error.__cause__ or error)))
        raise StageError(f"the upload failed: {': '.join(causes)}", where=where, hint=AGAIN) from error
