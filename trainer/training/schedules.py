"""Learning-rate schedules."""

import math

import keras

from tripletmill.errors import UsageError


@keras.saving.register_keras_serializable("tripletmill")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a line from 0 to the peak, then falls to 0 along half a cosine.

    Args:
      peak: highest learning rate.
      steps: step at which it is 0 again.
      warmup_steps: step at which the peak is reached.
    """

    def __init__(self, peak: float, steps: int, warmup_steps: int = 0) -> None:
        if not 0 <= warmup_steps < steps:
            raise UsageError(f"WarmupCosine: 0 <= warmup_steps {warmup_steps} < steps {steps}")
        self.peak, self.steps, self.warmup_steps = peak, steps, warmup_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        share = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        fall = 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(share, 0.0, 1.0)))
        return (
            self.peak * keras.ops.minimum(rise, 1.0) * fall
            if self.warmup_steps
            else (self.peak * fall)
        )

    def get_config(self) -> dict:
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps}
