"""The embedding models that this process holds in memory: up to EMBEDDING_MAX_MODELS."""

from dataclasses import dataclass

from django.conf import settings

from inference.embeddings.encoders.base import Encoder
from inference.embeddings.encoders.cross_encoder import CrossEncoder
from inference.embeddings.encoders.gguf import GGUFEncoder
from inference.embeddings.encoders.gguf_cross_encoder import GGUFCrossEncoder
from inference.embeddings.encoders.sentence_transformers import SentenceTransformersEncoder
from inference.engine.errors import ModelLoadError
from inference.loading import weights
from inference.loading.loaded_models import LoadedModel, LoadedModels
from inference.models import RegisteredModel


@dataclass(eq=False, slots=True)
class LoadedEncoder(LoadedModel):
    """An unloaded one stays in memory until what is still being computed with it is done."""

    encoder: Encoder


class LoadedEncoders(LoadedModels[LoadedEncoder]):
    def _load(self, model: RegisteredModel) -> LoadedEncoder:
        while len(self._loaded) >= settings.EMBEDDING_MAX_MODELS:
            self.unload(self.evictable()[0].model.name)
        config = model.config
        path = weights.find_embedding(config)
        encoder: Encoder
        try:
            is_ranking = model.extra.get("format") == weights.CROSS_ENCODER
            if weights.is_gguf(path):
                of_gguf = GGUFCrossEncoder if is_ranking else GGUFEncoder
                encoder = of_gguf(path, config, model.context_window or settings.N_CTX)
            elif is_ranking:
                encoder = CrossEncoder(path, config)
            else:
                encoder = SentenceTransformersEncoder(path, config)
        except Exception as error:
            # Each library has exceptions of its own for files that are broken or do not fit.
            raise ModelLoadError(str(error)) from error
        if config.get("dimensions", encoder.dimensions) != encoder.dimensions:
            raise ValueError(f"It has {encoder.dimensions} dimensions: register it with fewer.")
        facts = {"dimensions": encoder.dimensions, "prompts": sorted(encoder.prompts)}
        extra = {**model.extra, **facts}
        self._record(model, context_window=encoder.max_tokens, extra=extra)
        return LoadedEncoder(model, encoder)


loaded_encoders = LoadedEncoders()
