"""Translate exceptions of the Hugging Face client into sentences for a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from resprout.configs.errors import BadInput, ResproutError, Transient

TIMEOUT_SECONDS = 20.0
"""For an answer of the hub, which its client would wait for without end."""


@contextmanager
def hub_faults(address: str) -> Iterator[None]:
    """Turn the hub client's errors into BadInput (not there, no access, offline) or Transient."""
    from huggingface_hub import constants, errors

    try:
        yield
    except ResproutError:
        raise
    except errors.GatedRepoError as error:
        raise BadInput(
            f"'{address}' is gated: accept its terms on huggingface.co and set HF_TOKEN to your token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"'{address}': the hub has no such repository, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(
            f"'{address}': there is no such branch, tag or commit; check the part after @"
        ) from error
    except errors.EntryNotFoundError as error:
        raise BadInput(
            f"'{address}': the repository has no such file at this revision; check the path"
        ) from error
    except errors.HFValidationError as error:
        raise BadInput(f"'{address}' is no repository name; give org/name") from error
    except errors.OfflineModeIsEnabled as error:
        raise BadInput(
            f"'{address}' is not in the local hub cache and HF_HUB_OFFLINE is set; unset it, or download the "
            "files first and give their folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise BadInput(f"'{address}': the hub refuses access ({status}); set a valid HF_TOKEN") from error
        if status >= 500 or status in (0, 408, 429):
            raise Transient(
                f"the hub is busy or failing ({status}) for '{address}'; try again later"
            ) from error
        raise BadInput(f"'{address}': the hub refuses the request ({status}); check the address") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        # The first is of the hub client's own HTTP library, which is not the same in all of its versions.
        raise Transient(
            f"{constants.ENDPOINT} cannot be reached for '{address}' ({type(error).__name__}); check the "
            "network, or download the files first and give their folder"
        ) from error
