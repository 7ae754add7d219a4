"""Makes ``golden/hf_clip_flax`` with ``FlaxCLIPModel``, which transformers 5 no longer has.

pip install "transformers==4.49.0"      # in an environment with jax and flax
python tests/weights/make_golden_flax.py
"""

import pathlib

import jax
import numpy as np
from transformers import CLIPConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPModel

FOLDER = pathlib.Path(__file__).parent / "golden" / "hf_clip_flax"


def main():
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    words = {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 48}
    config = CLIPConfig(
        text_config={**tower, **words},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    model = FlaxCLIPModel(config, input_shape=((1, 8), (1, 8, 8, 3)))
    rng = np.random.default_rng(0)

    def moved(leaf):
        return np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)

    model.params = jax.tree.map(moved, model.params)
    model.save_pretrained(FOLDER)
    images = rng.standard_normal((3, 3, 8, 8)).astype(np.float32)
    tokens = rng.integers(3, 48, (3, 8))
    tokens[:, -1] = 49
    out = model(input_ids=tokens, pixel_values=images)
    np.savez(
        FOLDER / "expected.npz",
        images=images.transpose(0, 2, 3, 1),
        tokens=tokens.astype(np.int32),
        image=out.image_embeds,
        text=out.text_embeds,
        logits=out.logits_per_image,
    )


if __name__ == "__main__":
    main()
