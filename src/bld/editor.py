"""The editor: photograph, mask and prompt in, edited photographs out."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch

from bld.blend import blend
from bld.encoded import Encoded
from bld.errors import InvalidInput
from bld.fidelity import Fidelity, fidelity
from bld.images import (
    Photograph,
    Source,
    from_tensor,
)
from bld.masks import Crop, FloatArray
from bld.models.base import LatentModel
from bld.models.load import load_model
from bld.models.memory import enough_memory
from bld.options import TUNED, EditOptions, LoadOptions, RankBy, Reconstruction, either
from bld.rank import Ranker, Ranking, load_ranker, rank
from bld.reconstruct import Scene, length, reconstruct
from bld.sample import Dropped, batches, passes, rounds, sample
from bld.task import Task, check

if TYPE_CHECKING:
    from PIL.Image import Image

ON_THE_WAY: RankBy = "crop"  # the view that separates best, and a third of what all of them cost

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as an edit goes on."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edited photograph, the seed that makes it, and what it did to the background.

    score: the ranker's, None without one. reconstruction: the way it went, which for all but the best may
    be another than the one asked for.
    """

    photograph: Photograph
    seed: int
    score: float | None
    reconstruction: Reconstruction
    fidelity: Fidelity

    @property
    def image(self) -> "Image":
        """The picture for Pillow, in 8 bits; profile and alpha included."""
        from bld.images import to_pil

        return to_pil(self.photograph)


@dataclass(frozen=True, eq=False)
class Latents:
    """What the model made, before the decoder: enough to finish an edit once more in another way.

    z_init: 1 c h w, E(x). z_0: n c h w, of each candidate. seeds: n, of each candidate.
    """

    z_init: torch.Tensor
    z_0: torch.Tensor
    seeds: tuple[int, ...]

    def of(self, candidates: Sequence[int]) -> "Latents":
        """Those of some candidates, by their places."""
        return Latents(self.z_init, self.z_0[list(candidates)], tuple(self.seeds[i] for i in candidates))


@dataclass(frozen=True, eq=False)
class EditResult:
    """All candidates, best first, with everything it takes to make them again.

    Without a ranker the order is that of the seeds. round_trip: D(E(x)), the photograph after the
    autoencoder alone. dropped: who was not finished. notes: what was converted, cut or decided on the way.
    seconds: per stage.
    """

    candidates: tuple[Candidate, ...]
    prompt: str
    options: EditOptions
    model: str
    revision: str
    ranker: str | None
    ranker_revision: str | None
    photograph: Photograph
    mask: FloatArray
    crop: Crop
    round_trip: Photograph
    latents: Latents
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True, eq=False)
class Preview:
    """An edit on its way, after one step of its blend.

    step: how many are done, of `steps`, over all micro-batches. seeds: of the candidates in work. z_0:
    n c h w, what the model takes those to be. mask: h w of the photograph, above 0 = edit.
    """

    step: int
    steps: int
    seeds: tuple[int, ...]
    z_0: torch.Tensor
    mask: FloatArray
    show: Callable[[torch.Tensor], Photograph]

    def photograph(self, candidate: int = 0) -> Photograph:
        """One of them in the photograph, stitched. Runs the decoder: ask for as many as are looked at."""
        return self.show(self.z_0[candidate : candidate + 1])


@dataclass
class Stages:
    """Times the stages of an edit and reports how far each is."""

    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Within it, call the given function with the count that is done."""
        started = time.perf_counter()

        def report(done: int) -> None:
            if self.progress:
                self.progress(name, done, total)

        report(0)
        yield report
        self.seconds[name] = time.perf_counter() - started


class Editor:
    """Edits photographs with one loaded model. Edits do not change it: two may run at once.

    editor = Editor.from_pretrained("mini")
    result = editor.edit("photo.jpg", "mask.png", "a guitar", candidates=8, seed=0)
    result.best.image.save("out.png")
    """

    def __init__(self, model: LatentModel, ranker: Ranker | None = None) -> None:
        self.model, self.ranker, self._encoded = model, ranker, Encoded(model)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, ranker: str = "auto", options: LoadOptions | None = None, **changes: Any
    ) -> Self:
        """Load a model by name, folder, file or hub id, and the model that ranks its candidates.

        Options come as a `LoadOptions` or one by one (device="cpu", lora=["style.safetensors:0.8"], ...).
        See `bld.models.load.load_model` and `bld.rank.load_ranker`.
        """
        loading, name = either(LoadOptions, options, changes), str(name)
        model = load_model(name, loading)
        return cls(model, load_ranker(ranker, name, device=loading.device, pickles=loading.allow_pickle))

    @enough_memory()
    def edit(
        self,
        image: Source | Photograph,
        mask: Source,
        prompt: str,
        *,
        options: EditOptions | None = None,
        progress: Progress | None = None,
        preview: Callable[[Preview], None] | None = None,
        best: int | None = None,
        **changes: Any,
    ) -> EditResult:
        """Edit `image` (path, PIL image or array h w 3) where `mask` is white, as `prompt` says.

        Options come as an `EditOptions` or one by one (candidates=8, seed=0, ...). Raises InvalidInput
        for whatever cannot be edited as asked, and BldError where memory runs out; nothing is resized,
        inverted or cut unless an option says so, and what was converted is in the result's notes.

        progress and preview are called as it goes on; an exception that either raises ends the edit within
        a step. best: how many of the candidates, from the first on, are finished and given back; all if left
        out.
        """
        if best is not None and best < 1:
            raise InvalidInput(f"best is {best}; expected 1 or more candidates to give back")
        task = check(self.model, image, mask, prompt, either(EditOptions, options, changes))
        stages = Stages(progress)
        with stages.stage("encode", 1) as done:
            z_init = self._encoded(task.x())
            done(1)
        latents, dropped = self._blend(task, z_init, stages, preview)
        return self._finish(task, latents, stages, self.ranker, dropped, best)

    @enough_memory()
    def edit_together(self, tasks: Sequence[Task]) -> list[EditResult]:
        """Several checked edits, denoised in shared batches: faster where each has few candidates.

        The tasks are of one grid and agree in what makes a trajectory, but for the prompt, and in batch size;
        where candidates are dropped on the way, each edit is denoised by itself. A result is what `edit`
        gives, but for rounding; its seconds are its share. Raises BldError where memory runs out.
        """
        stages = Stages(None)
        with stages.stage("encode", 1):
            z_init = [self._encoded(task.x()) for task in tasks]
        with stages.stage("blend", 1):
            if self.ranker and any(task.options.finalists != task.options.candidates for task in tasks):
                made = [
                    self._blend(task, z, Stages(None), None) for task, z in zip(tasks, z_init, strict=True)
                ]
            else:
                made = [(latents, ()) for latents in self._blend_together(tasks, z_init)]
        shares = {stage: seconds / len(tasks) for stage, seconds in stages.seconds.items()}
        return [
            self._finish(task, latents, Stages(None, dict(shares)), self.ranker, dropped)
            for task, (latents, dropped) in zip(tasks, made, strict=True)
        ]

    @enough_memory()
    def finish(
        self,
        image: Source | Photograph,
        mask: Source,
        prompt: str,
        latents: Latents,
        *,
        options: EditOptions,
        progress: Progress | None = None,
    ) -> EditResult:
        """The last stages of an edit, from the latents that it left: decode and reconstruct.

        Image, mask, prompt and options are those of the edit, but for the finish (reconstruct, feather,
        tune_...). Candidates keep the order they have in `latents`. Raises InvalidInput as `edit` does,
        and for latents of another picture or mask.
        """
        task = check(self.model, image, mask, prompt, replace(options, candidates=len(latents.seeds)))
        if tuple(latents.z_init.shape[-2:]) != task.grid:
            raise InvalidInput(
                f"the latents have {latents.z_init.shape[-2]}x{latents.z_init.shape[-1]} cells, this edit "
                f"{task.grid[0]}x{task.grid[1]}: give the picture and mask that made them"
            )
        return self._finish(task, latents, Stages(progress), None)

    def _finish(
        self,
        task: Task,
        latents: Latents,
        stages: Stages,
        ranker: Ranker | None,
        dropped: tuple[Dropped, ...] = (),
        best: int | None = None,
    ) -> EditResult:
        """Decode every candidate that was denoised, rank them and reconstruct the best ones' backgrounds."""
        with stages.stage("decode", 1 + len(latents.seeds)) as done:
            decoded = []
            for number, z in enumerate([latents.z_init[0], *latents.z_0]):
                decoded.append(from_tensor(self.model.decode(z[None]))[0])
                done(number + 1)
        round_trip, *decoded = decoded
        scores: tuple[float | None, ...] = (None,) * len(decoded)
        if ranker is not None:
            with stages.stage("rank", 1) as done:
                ranking = self._ranking(task, ranker, decoded, task.options.rank_by)
                latents, decoded = latents.of(ranking.order), [decoded[i] for i in ranking.order]
                scores = tuple(ranking.scores[i] for i in ranking.order)
                done(1)
        told = self._told(task.options, len(decoded), len(dropped))
        decoded, scores, latents = decoded[:best], scores[:best], latents.of(range(len(decoded))[:best])
        ways = self._ways(task.options, len(decoded))
        candidates, before = [], 0
        with stages.stage("reconstruct", sum(length(way, task.options) for way in ways)) as done:
            for way, picture, z, seed, score in zip(
                ways, decoded, latents.z_0, latents.seeds, scores, strict=True
            ):
                report = partial(lambda before, steps: done(before + steps), before)
                photograph = reconstruct(way, self._scene(task, picture, z[None]), report)
                found = fidelity(task.photograph, photograph, task.mask, task.crop.box)
                candidates.append(Candidate(photograph, seed, score, way, found))
                before += length(way, task.options)
        return EditResult(
            candidates=tuple(candidates),
            prompt=task.prompt,
            options=task.options,
            model=self.model.name,
            revision=self.model.revision,
            ranker=ranker.name if ranker else None,
            ranker_revision=ranker.revision if ranker else None,
            photograph=task.photograph,
            mask=task.mask,
            crop=task.crop,
            round_trip=reconstruct("none", self._scene(task, round_trip, latents.z_init)),
            latents=latents,
            dropped=dropped,
            notes=(*task.notes, *told),
            seconds=stages.seconds,
        )

    @staticmethod
    def _told(options: EditOptions, finished: int, dropped: int) -> list[str]:
        """What is to be said of candidates that were dropped, or were to be."""
        if dropped:
            return [f"{dropped} of {options.candidates} candidates were dropped on the way"]
        kept_all = finished > (options.finalists or finished)
        return ["no candidate was dropped: that takes a ranker, and more than one step"] * kept_all

    @staticmethod
    def _ways(options: EditOptions, count: int) -> list[Reconstruction]:
        """How each candidate is reconstructed: tuning takes a while, so only the best are tuned."""
        tuned = options.tune_candidates if options.reconstruct in TUNED else count
        return [options.reconstruct if i < tuned else "stitch" for i in range(count)]

    @staticmethod
    def _ranking(task: Task, ranker: Ranker, decoded: Sequence[FloatArray], by: RankBy) -> Ranking:
        """Which of the decoder's pictures fit the prompt, with the photograph around the edit."""
        x, m = from_tensor(task.x())[0], task.seen_mask()[..., None]
        pasted = [x + m * (y - x) for y in decoded]
        return rank(ranker, pasted, m[..., 0], task.prompt, by)

    def _scene(self, task: Task, decoded: FloatArray, z_0: torch.Tensor) -> Scene:
        return Scene(
            photograph=task.photograph,
            box=task.crop.box,
            mask=(task.mask > 0).astype(np.float32),
            decoded=decoded,
            z_0=z_0,
            decoder=self.model.decoder,
            options=task.options,
        )

    def _blend(
        self, task: Task, z_init: torch.Tensor, stages: Stages, preview: Callable[[Preview], None] | None
    ) -> tuple[Latents, tuple[Dropped, ...]]:
        """z_0 of every candidate that is finished. Without a ranker all of them are."""
        options, ranker = task.options, self.ranker
        length = len(self.model.trajectory(task.prompt, options, task.grid))
        plan = rounds(length, options.candidates, options.finalists if ranker else None)
        steps = passes(plan, task.batch_size)

        def show(z: torch.Tensor) -> Photograph:
            return reconstruct("stitch", self._scene(task, from_tensor(self.model.decode(z))[0], z))

        def judge(guesses: torch.Tensor) -> Ranking:
            decoded = [from_tensor(self.model.decode(z[None]))[0] for z in guesses]
            return self._ranking(task, cast(Ranker, ranker), decoded, ON_THE_WAY)

        with stages.stage("blend", steps) as done:
            count = itertools.count(1)

            def watch(seeds: Sequence[int], guesses: torch.Tensor) -> None:
                step = next(count)
                done(step)
                if preview:
                    preview(Preview(step, steps, tuple(seeds), guesses, task.mask, show))

            running, dropped = sample(self.model, task, z_init, plan, judge, watch)
        z_0, seeds = torch.cat([c.z for c in running]), tuple(c.seed for c in running)
        return Latents(z_init, z_0, seeds), tuple(dropped)

    def _blend_together(self, tasks: Sequence[Task], z_init: Sequence[torch.Tensor]) -> list[Latents]:
        """The latents of every task: a micro-batch takes candidates as they come."""
        first = tasks[0]
        rows = [(i, seed) for i, task in enumerate(tasks) for seed in task.seeds]
        z_0: list[list[torch.Tensor]] = [[] for _ in tasks]
        for some in batches(len(rows), first.batch_size):
            batch = rows[some]
            prompts = tuple(tasks[i].prompt for i, _ in batch)
            trajectory = self.model.trajectory(prompts, first.options, first.grid)
            masks = [tasks[i].m_latent(len(trajectory)) for i, _ in batch]
            m_latent = [
                torch.from_numpy(np.stack(step)[:, None]).to(z_init[0]) for step in zip(*masks, strict=True)
            ]
            generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
            *_, z = blend(trajectory, torch.cat([z_init[i] for i, _ in batch]), m_latent, generators)
            for (i, _), one in zip(batch, z, strict=True):
                z_0[i].append(one)
        return [
            Latents(z, torch.stack(z_0[i]), tuple(task.seeds))
            for i, (task, z) in enumerate(zip(tasks, z_init, strict=True))
        ]
