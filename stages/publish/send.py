"""The upload itself, by huggingface_hub: one commit a repository, so that nothing is visible before all of it is.

Large files go one after the other, each stored by the Hub under its hash before the commit that names it. After an
interruption the same command sends none again that arrived: the Hub answers that it has it (LFS), or has its chunks
(xet). Where nothing has changed there is no new commit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from pipeline.config.export import PublishConfig
from pipeline.errors import StageError
from pipeline.files import readable_bytes
from stages.publish.uploads import CARD, Opener, Upload, size

AGAIN = "run the same command again: what has arrived is not sent again"
OURS = {
    "model": (
        "model*.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
    ),
    "dataset": ("data/train-*.parquet", "data/eval-*.parquet"),
}
"""What an earlier upload may have left that would now be loaded as a part of this one."""


def send(upload: Upload, progress: Opener, say: Callable[[str], None]) -> str:
    """Uploads in one commit and returns its address. Raises `StageError`; nothing is visible then."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # bars in a log file are pages of noise; ours are lines there
    api = HfApi(library_name="tutelage")
    repository, kind = upload.repository, upload.kind
    contents = upload.contents
    with _explained(repository):
        RepoCard(upload.card).validate(
            repo_type=kind
        )  # the Hub refuses bad metadata, at best before gigabytes went out
        api.create_repo(repository, repo_type=kind, private=upload.private, exist_ok=True)
        # An older repository keeps its visibility whatever create_repo asks for.
        if upload.private and not api.repo_info(repository, repo_type=kind).private:
            raise StageError(
                f"{repository} is public already, and a private upload was asked for",
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
    """Puts what was uploaded into the recipe's collection and returns its address; None when it names none."""
    if publish.collection is None:
        return None
    from huggingface_hub import HfApi

    api = HfApi(library_name="tutelage")
    owner = uploads[-1].repository.partition("/")[0]
    private = all(upload.private for upload in uploads)
    with _explained(f"{owner}/{publish.collection}"):
        made = api.create_collection(publish.collection, namespace=owner, private=private, exists_ok=True)
        for upload in uploads:
            api.add_collection_item(made.slug, upload.repository, upload.kind, exists_ok=True)
    return made.url


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Whatever the client raises, as one message."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    login = "run `hf auth login`, or set HF_TOKEN to a token that may write"
    try:
        yield
    except LocalTokenNotFoundError:
        raise StageError("the Hub wants to know who uploads", where=where, hint=login) from None
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        raise StageError(f"the Hub refused: {error}", where=where, hint=login if refused else AGAIN) from error
    except ValueError as error:  # metadata that the Hub does not take
        hint = "correct publish.license, publish.rankings_license or the names in the recipe"
        raise StageError(f"the Hub refused the card: {error}", where=where, hint=hint) from error
    except (
        HTTPError,
        OSError,
        RuntimeError,
    ) as error:  # connections, and what hf_xet and the LFS upload make of them
        cause = error.__cause__ or error
        raise StageError(f"the upload broke off: {error} ({cause})", where=where, hint=AGAIN) from error
