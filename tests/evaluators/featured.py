"""A predictor whose outputs of a picture are a known function of its number."""

import numpy as np
import oracles

from big_mm.mesh import single_device_mesh
from big_mm.predictor import Predictor


class Featured(Predictor):
    """`outputs[name](number)` is a row."""

    def __init__(self, contract, mesh=None, **outputs):
        for name, value in {
            "contract": contract,
            "outputs_of": outputs,
            "mesh": mesh or single_device_mesh(),
            "features": None,
            "kept": {},
            "asked": [],
        }.items():
            object.__setattr__(self, name, value)

    def image_outputs(self, images, keys, dtype="float32"):
        numbers = [oracles.number_of(image) for image in images]
        self.asked.extend(numbers)
        return {
            key: np.stack([np.asarray(self.outputs_of[key](n), dtype) for n in numbers])
            for key in keys
        }
