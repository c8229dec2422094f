"""The service's settings, with the Channels layer that CHANNEL_LAYER names: to compare them."""

import os

from sopllm.settings import *  # noqa: F403
from sopllm.settings import CHANNEL_LAYERS

LAYERS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}

CHANNEL_LAYERS["default"]["BACKEND"] = LAYERS[os.environ["CHANNEL_LAYER"]]
