"""A dataset of the Hugging Face Hub, pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.tasks.acquire.hub_faults import TIMEOUT_SECONDS, hub_faults
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted

_ADDRESS = re.compile(r"hf-dataset://([^/@#]+/[^/@#]+)(?:/([^/@#]+))?(?:@([^@#]+))?#([A-Za-z0-9_.]+)")


class HubDataset:
    """hf-dataset://org/name[/config][@revision]#split; one split arrives as Parquet."""

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        found = _ADDRESS.fullmatch(address)
        if not found:
            raise BadInput(
                f"'{address}' is no dataset address; give hf-dataset://org/name[/config][@revision]#split"
            )
        if wanted.purpose != "data":
            raise BadInput(
                f"'{address}' is a dataset; give a model as a path, hf://, s3://, package:// or models:/"
            )
        repository, config, revision, split = found.groups()
        with hub_faults(address):
            from huggingface_hub import HfApi

            info: Any = HfApi().dataset_info(repository, revision=revision or "main", timeout=TIMEOUT_SECONDS)
        label = f"{repository}{f'/{config}' if config else ''}#{split}"
        identity = {"repository": repository, "config": config, "split": split, "commit": info.sha}
        card = info.card_data
        licence = card.get("license") if card is not None else None
        return Pinned(
            uri=f"hf-dataset://{repository}{f'/{config}' if config else ''}@{info.sha}#{split}",
            scheme="hf-dataset",
            label=label,
            files=(PinnedFile(f"{split}.parquet", 0, address, info.sha),),
            identity=identity,
            digest=sha256_hex(canonical_json([info.sha, config, split])),
            licence=", ".join(licence) if isinstance(licence, list) else licence,
        )

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError

        identity = pinned.identity
        with hub_faults(pinned.uri):
            try:
                data = load_dataset(
                    identity["repository"],
                    identity["config"],
                    split=identity["split"],
                    revision=identity["commit"],
                )
            except (ValueError, RuntimeError, DatasetsError) as error:
                cause = error.__cause__
                if isinstance(cause, ConnectionError | TimeoutError | HTTPError):
                    raise cause from None  # it says more than that the data could not be made
                reason = " ".join(f"{error} {cause or ''}".split())[:300]
                raise BadInput(
                    f"'{pinned.uri}' cannot be loaded: {reason}; check config and split, or download its "
                    "data files and give their path"
                ) from error
        target = scratch / pinned.files[0].path
        data.to_parquet(str(target))
        return {pinned.files[0].path: target}
