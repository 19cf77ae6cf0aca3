"""The webhook in MLflow that sends what happens to versions to the relay."""

from __future__ import annotations

from typing import Any

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import without_credentials

NAME = "resprout-relay"
EVENTS = ("model_version.created", "model_version_alias.created", "model_version_tag.set")


def register_webhook(tracking_uri: str, url: str, secret: str) -> str:
    """Id of the one webhook called resprout-relay, made or brought up to date.

    Raises:
        BadInput: MLflow does not take the address.
        StageFailed: MLflow does not answer.
    """
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    settings: dict[str, Any] = {
        "name": NAME,
        "url": url,
        "events": list(EVENTS),
        "secret": secret,
        "status": "ACTIVE",
    }
    try:
        found = [hook for hook in _all(client) if hook.name == NAME]
        for more in found[1:]:
            client.delete_webhook(more.webhook_id)
        if found:
            return str(client.update_webhook(found[0].webhook_id, **settings).webhook_id)
        return str(client.create_webhook(**settings).webhook_id)
    except (MlflowException, requests.RequestException) as error:
        text = without_credentials(" ".join(str(error).split())).replace(secret, "…")[:300]
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise BadInput(
                f"MLflow takes no webhook to {without_credentials(url)} ({text}); give https:// with a "
                "public address, or have the server allow others by MLFLOW_WEBHOOK_ALLOWED_SCHEMES and "
                "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"
            ) from None
        raise StageFailed(f"MLflow at {without_credentials(tracking_uri)} took no webhook: {text}") from None


def _all(client: Any) -> list[Any]:
    hooks, token = [], None
    while True:
        page = client.list_webhooks(page_token=token)
        hooks += page
        token = page.token
        if not token:
            return hooks
