"""Training loss of the mask codec (VQ-VAE, van den Oord et al., arXiv 1711.00937).

The published codec keeps its codebook as a moving average of what is assigned to it. A trainer
that only follows gradients has none; the codebook loss stands in for it, and an entropy term
spreads the soft assignments over the codes, so that they do not all die at once.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bigvlm.types import Batch, Outputs


@dataclasses.dataclass(frozen=True)
class MaskVQ:
  """Mean over rows of MSE on [-1, 1] + codebook + commitment - spread.

  Attributes:
    commitment: weight of the encoder's pull to its code (0.25 in the paper).
    spread: weight of the entropy of the mean soft assignment, relative to its maximum.
  """

  commitment: float = 0.25
  spread: float = 0.1

  def __call__(self, out: Outputs, batch: Batch) -> tuple[jax.Array, dict]:
    """Needs the heads of `MaskCodec`; rows of weight 0 (`batch.weights` [B, K]) do not count.

    Metrics: `mse`, `miou` of the reconstruction, `codes` in use in the batch.
    """
    heads, stop = out.heads, jax.lax.stop_gradient
    rows = jnp.ones(len(heads["z"])) if batch.weights is None else batch.weights[:, 0]
    count = jnp.maximum(rows.sum(), 1.0)

    def total(x):
      return (x.reshape(len(x), -1).mean(1) * rows).sum()

    z, chosen, far = heads["z"], heads["chosen"], heads["far"]
    mse = total(jnp.square(heads["recon"] - heads["target"]))
    codebook = total(jnp.square(stop(z) - chosen)) / count
    commit = total(jnp.square(z - stop(chosen))) / count
    # A softmax whose temperature is the typical distance to the nearest code.
    near = stop(total(far.min(-1)) / count)
    share = (jax.nn.softmax(-far / (near + 1e-6), -1) * rows[:, None, None]).sum((0, 1))
    share = share / (count * far.shape[1])
    entropy = -(share * jnp.log(share + 1e-9)).sum() / jnp.log(float(share.shape[0]))
    loss = mse / count + codebook + self.commitment * commit - self.spread * entropy

    recon, target = heads["recon"] > 0, heads["target"] > 0
    both, either = (recon & target).sum((1, 2, 3)), (recon | target).sum((1, 2, 3))
    used = (jax.nn.one_hot(heads["code"], far.shape[-1]) * rows[:, None, None]).sum((0, 1)) > 0
    one = jnp.float32(1)
    metrics = {
      "loss": (loss * count, count),
      "mse": (mse, count),
      "miou": ((both / jnp.maximum(either, 1) * rows).sum(), count),
      "codes": (used.sum().astype(jnp.float32), one),
    }
    return loss, metrics
