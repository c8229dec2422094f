"""The endpoints that a registration names, each as the model that is asked there."""

from copy import copy
from urllib.parse import urlsplit

from inference.models import RegisteredModel


def models_by_endpoint(model: RegisteredModel) -> dict[str, RegisteredModel]:
    """By endpoint name, the model with the address and key that it is asked with there.

    A model without `endpoints` has one, named after its host or its provider. An endpoint without a
    key of its own gets that of the model.
    """
    if "endpoints" not in model.config:
        return {host_of(model.config.get("base_url", "")) or model.provider: model}
    shared = {name: value for name, value in model.config.items() if name != "endpoints"}
    found: dict[str, RegisteredModel] = {}
    for endpoint in model.config["endpoints"]:
        there = copy(model)
        there.config = shared | endpoint
        if "api_key_env_var" in endpoint:
            there.encrypted_api_key = ""
        elif own_key := model.encrypted_endpoint_keys.get(endpoint["name"]):
            there.encrypted_api_key = own_key
            there.config.pop("api_key_env_var", None)
        found[endpoint["name"]] = there
    return found


def host_of(base_url: str) -> str:
    """The host of an address, and the port where it names one: what an endpoint is called."""
    return urlsplit(base_url).netloc
