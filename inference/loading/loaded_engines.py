"""The engines that a GPU worker holds in memory: as many as fit."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from inference.engine.engine import Engine
from inference.engine.errors import EngineError, ModelLoadError
from inference.engine.gguf_header import GGUFHeader, read_header
from inference.engine.memory_estimate import MemoryEstimate
from inference.engine.runner import GPUSplit, LoadParams, SplitMode
from inference.errors import InferenceError
from inference.loading import device_memory, file_hashes, requests
from inference.loading.loaded_models import LoadedModel, LoadedModels
from inference.loading.sizes import ModelSizes, model_sizes
from inference.loading.weights import resolve_draft, resolve_file
from inference.models import ModelProvenance, RegisteredModel
from monitoring.hardware import energy, worker_identity

if TYPE_CHECKING:
    from inference.engine.llama_runner import LlamaRunner

logger = logging.getLogger(__name__)

Request = RegisteredModel.Request


@dataclass(eq=False, slots=True)
class LoadedEngine(LoadedModel):
    runner: "LlamaRunner"
    engine: Engine
    estimate: MemoryEstimate
    provenance: ModelProvenance
    # Of the device that computes it, so far; None where nobody can tell.
    read_joules: Callable[[], float | None]
    draft_runner: "LlamaRunner | None" = None

    @property
    def loaded_with(self) -> dict[str, Any]:
        return self.provenance["loaded"] | {
            "num_threads": self.engine.num_threads,
            "step_prompt_tokens": self.engine.num_step_prompt_tokens,
        }

    def close(self) -> None:
        self.runner.close()
        if self.draft_runner is not None:
            self.draft_runner.close()


@dataclass(frozen=True, slots=True)
class _Files:
    """The file of a model, and of the one that drafts for it."""

    path: Path
    header: GGUFHeader
    draft_path: Path | None
    draft_header: GGUFHeader | None


class _NoRoomError(ModelLoadError):
    """The model does not fit into the memory that is free now."""


class LoadedEngines(LoadedModels[LoadedEngine]):
    """Idle models make room for others; where there are none, a model gets fewer sequences."""

    def serve_requests(self) -> None:
        """Unload what is deleted or idle, then do what the rows ask for; between two sessions."""
        self.unload_unused()
        for model in list(RegisteredModel.objects.requests_for(worker_identity.current())):
            try:
                if model.requested == Request.UNLOAD:
                    self.unload(model.name)
                else:
                    self._record_use(self.load(model))
            except InferenceError:
                pass  # the row says why
            finally:  # whatever happens: a request that stays would hold up all tasks
                requests.end(model, Request(model.requested))

    def _load(self, model: RegisteredModel) -> LoadedEngine:
        path, draft_path = resolve_file(model.config["model_path"]), resolve_draft(model.config)
        draft_header = read_header(draft_path) if draft_path else None
        files = _Files(path, read_header(path), draft_path, draft_header)
        sizes = wanted = model_sizes(model.config, model.context_window or settings.N_CTX)
        while True:
            try:
                loaded = self._load_sized(model, files, sizes)
            except _NoRoomError as error:
                if evictable := self.evictable():
                    # Don't evict if evicting everything would not be enough.
                    self._checked_estimate(
                        model, files, replace(sizes, max_num_seqs=1), leaving=evictable
                    )
                    name = evictable[0].model.name
                    logger.info("Model %s makes room for %s: %s", name, model.name, error)
                    self.unload(name)
                elif sizes.max_num_seqs == 1:
                    raise
                else:
                    sizes = sizes.with_half_the_seqs()
                continue
            if sizes != wanted:
                logger.warning(
                    "Model %s: memory for %d of %d sequences",
                    *(model.name, sizes.max_num_seqs, wanted.max_num_seqs),
                )
            return loaded

    def _load_sized(self, model: RegisteredModel, files: _Files, sizes: ModelSizes) -> LoadedEngine:
        device_memory.show_own_gpus()
        # llama.cpp takes a second to import: only the process that runs models pays for it.
        from inference.engine import llama_build
        from inference.engine.llama_runner import LlamaRunner

        needed = self._checked_estimate(model, files, sizes)
        params = LoadParams(
            path=files.path,
            **asdict(sizes),
            gpu_layers=_gpu_layers(model),
            gpu_split=_gpu_split(model) if device_memory.has_gpu() else None,
            num_threads=model.config.get("num_threads", settings.N_THREADS) or None,
        )
        runners: list[LlamaRunner] = []
        try:
            runners.append(LlamaRunner(params))
            if files.draft_path is not None:
                draft_params = replace(params, path=files.draft_path, max_draft_tokens=0)
                runners.append(LlamaRunner(draft_params))
                runners[1].check_drafts_for(runners[0])
        except EngineError as error:
            for runner in runners:
                runner.close()
            # The allocation failed although the estimate said that it would fit.
            if "allocate" in str(error):
                raise _NoRoomError(str(error)) from error
            raise
        runner, draft_runner = runners[0], runners[1] if len(runners) > 1 else None
        engine = Engine(runner, draft_runner=draft_runner)
        joules = energy.joules_of_cpu()
        if needed.device_bytes:
            joules = energy.joules_of_gpus(settings.GPU_INDEXES)
        values = {
            "gpu_layers": params.gpu_layers,
            "gpu_split": params.gpu_split and asdict(params.gpu_split),
            "num_threads": params.num_threads,
        }
        provenance = ModelProvenance(
            file=file_hashes.identity(files.path),
            llama_cpp=llama_build.BUILD,
            llama_cpp_system=llama_build.SYSTEM,
            chat_template_sha256=runner.chat_template.sha256,
            loaded=asdict(sizes) | values,
        )
        return LoadedEngine(model, runner, engine, needed, provenance, joules, draft_runner)

    def _checked_estimate(
        self,
        model: RegisteredModel,
        files: _Files,
        sizes: ModelSizes,
        leaving: Sequence[LoadedEngine] = (),
    ) -> MemoryEstimate:
        """What the model will need. Raises _NoRoomError when that is not there now.

        `leaving`: loaded models that are taken as gone.
        """
        gpu_layers = device_memory.used_gpu_layers(_gpu_layers(model))
        needed = sizes.estimate(files.header, gpu_layers, files.draft_header)
        staying = [each for each in self._loaded.values() if each not in leaving]
        try:
            device_memory.check_fits(
                model.name,
                needed,
                gpu_layers=gpu_layers,
                gpu_split=_gpu_split(model),
                staying=[each.estimate for each in staying],
                leaving=[each.estimate for each in leaving],
            )
        except ModelLoadError as error:
            raise _NoRoomError(str(error)) from error
        return needed


def _gpu_layers(model: RegisteredModel) -> int:
    gpu_layers: int = model.config.get("gpu_layers", settings.GPU_LAYERS)
    return gpu_layers


def _gpu_split(model: RegisteredModel) -> GPUSplit:
    config = model.config
    tensor_split = config.get("tensor_split")
    return GPUSplit(
        SplitMode(config.get("split_mode", SplitMode.LAYER)),
        config.get("main_gpu", 0),
        None if tensor_split is None else tuple(tensor_split),
    )


loaded_engines = LoadedEngines()
