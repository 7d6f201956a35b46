"""What each process of `test_several_processes_train_one_model` runs: a line, learnt together."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from bld.errors import InvalidInput
from bld.training import loop

loop.STEPS_BETWEEN_LOGS = 10
folder = Path(sys.argv[1])
draws = loop.seeded(5)
layer = nn.Linear(3, 1)  # begins differently in each process
run = loop.Run(folder, "line", {"line": layer}, draws, 80, 4, 1e-2)
seen = []


def step() -> torch.Tensor:
    x = torch.randn(4, 3, generator=draws)
    seen.append(float(x[0, 0]))
    return (layer(x)[:, 0] - x.sum(1)).square().mean()


def prepared_as_for_gpus(module: nn.Module) -> nn.Module:
    """There, accelerate tells torch which GPU to move a step's input to."""
    shared = prepare(module)
    shared.device_ids = [0]
    return shared


prepare, run.accelerator.prepare_model = run.accelerator.prepare_model, prepared_as_for_gpus
run.train(step)
facts = {"weights": layer.weight.tolist(), "first_draw": seen[0], "done": run.done}
loop.once(folder / "made", lambda fresh: (fresh / "by").write_text(str(run.accelerator.process_index)))
facts["made_by"] = (folder / "made" / "by").read_text()
try:
    loop.join_group(torch.device("cuda:1"))
except InvalidInput as error:
    facts["refused"] = str(error)
loop.leave_group()
facts["threads"] = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
(folder / f"{run.accelerator.process_index}.json").write_text(json.dumps(facts))
