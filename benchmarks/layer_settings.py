"""The service's settings, with a Channels layer or a WebSocket protocol to compare.

CHANNEL_LAYER names the one, WEBSOCKET_PROTOCOL the other, as for uvicorn's `--ws`.
"""

import os

from sopllm import processes
from sopllm.settings import *  # noqa: F403
from sopllm.settings import CHANNEL_LAYERS

LAYERS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}

CHANNEL_LAYERS["default"]["BACKEND"] = LAYERS[os.environ.get("CHANNEL_LAYER", "pubsub")]
processes.WEBSOCKET_PROTOCOL = os.environ.get("WEBSOCKET_PROTOCOL", processes.WEBSOCKET_PROTOCOL)
