"""DVAE: learn a vocabulary of image patches, whose visual tokens CAE then predicts; makes a tokenizer, not a backbone.

Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021: its first stage, at a size that fits one device.
Paper: https://arxiv.org/abs/2102.12092. Reference code: https://github.com/lucidrains/DALLE-pytorch (dalle_pytorch/).

Shapes: B images of H x W pixels, g x g visual tokens, V visual tokens of the vocabulary.

The network is of the size that CAE's code names "customized", a `DiscreteVAE` of that reference code: 8192 visual
tokens, 512 wide, 256 channels, 3 layers of stride 2. No recipe for it is published. From the paper: the temperature's
cosine from 1 to 1/16, crops of the image, random flips, AdamW's weight decay. Of ours: squared error rather than the
logit-Laplace distribution, the rate, and that the KL is a mean over places; its weight is 0, as in the reference code.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Depth, Fraction, ImageSize, NonNegativeFloat, PositiveFloat, Range, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.optim.schedules import cosine
from ssl_bench.pretraining.method import Method


class DVAE(Method):
    """Discrete variational autoencoder, its visual tokens relaxed by Gumbel-softmax.

    Args:
        img_size: Pixels of a view, as many as CAE's tokenizer gets: a ViT's patches along a side times 2 ** layers;
            the data's own size when not given.
        vocabulary: V, visual tokens.
        dim: Width of a word's embedding.
        hidden_dim: Channels of the convolutions.
        layers: Convolutions of stride 2: a word stands for 2 ** layers pixels squared.
        blocks: Residual blocks of encoder and of decoder.
        temperature: Of the softmax at the start; a cosine leads to the final one.
        final_temperature: At the end; the lower, the more like a choice of one word.
        kl_weight: Of the divergence of the visual tokens' probabilities at a place from all being as likely.
        distance: Between image and reconstruction: l2 (mean squared) or l1 (mean absolute).
        crop_scale: Smallest part of the image's area in the view.
        image_size: The data's.
        optim: AdamW, 3e-4 whatever the batch.
    """

    kind = "tokenizer"
    families = ()

    product = "tokenizer"
    standardize = False

    def __init__(
        self,
        img_size: ImageSize | None = None,
        vocabulary: Annotated[int, Range(min=2, max=1_000_000)] = 8192,
        dim: Width = 512,
        hidden_dim: Width = 256,
        layers: Annotated[int, Range(min=1, max=10)] = 3,
        blocks: Depth = 2,
        temperature: PositiveFloat = 1.0,
        final_temperature: PositiveFloat = 1 / 16,
        kl_weight: NonNegativeFloat = 0.0,
        distance: Literal["l2", "l1"] = "l2",
        crop_scale: Fraction = 0.08,
        image_size: int = 32,
        optim: Optim = Optim("adamw", base_lr=3e-4, scaling="none", weight_decay=1e-4, warmup_epochs=0),
    ) -> None:
        super().__init__(None, optim)
        self.img_size = img_size or image_size
        if self.img_size % 2**layers:
            raise UserError(f"--method.img_size {self.img_size} is no multiple of 2 ** layers, {2**layers}")
        if vocabulary < 2:
            raise UserError(f"--method.vocabulary {vocabulary}: at least 2")
        if not 0 < final_temperature <= temperature:
            raise UserError(f"--method.final_temperature {final_temperature} must lie above 0, at most {temperature}")
        self.temperature, self.final_temperature = temperature, final_temperature
        self.kl_weight, self.distance, self.crop_scale = kl_weight, distance, crop_scale
        self.tokenizer = DiscreteVAE(vocabulary, dim, hidden_dim, layers, blocks)

    def views(self) -> Views:
        return [View(self.img_size, scale=(self.crop_scale, 1.0))]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Reconstruction and divergence; ``noise``, (B, V, g, g), Gumbel, may be given."""
        images = views[0]
        logits = self.tokenizer.logits(images).float()  # (B, V, g, g)
        noise = drawn.get("noise")
        if noise is None:
            noise = -torch.empty_like(logits).exponential_().log()
        weights = ((logits + noise) / self.temperature_now()).softmax(1)
        reconstructed = self.tokenizer.decode(weights).float()
        distance = {"l2": F.mse_loss, "l1": F.l1_loss}[self.distance](reconstructed, images.float())
        return distance + self.kl_weight * self.divergence(logits)

    def temperature_now(self) -> float:
        """Of this step."""
        total = self.total_steps if self._trainer is not None else 1
        return cosine(self.global_step, total, self.temperature, self.final_temperature)

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(q || uniform) in nats, q the softmax of (B, V, g, g) logits, mean over images and places."""
        log_q = logits.log_softmax(1)
        uniform = log_q.new_tensor(1 / logits.shape[1]).log()
        return (log_q.exp() * (log_q - uniform)).sum(1).mean()
