"""What is known of architectures, by the keys of their configs: a new architecture that differs is added here.

What is missing here is refused when a model is loaded or its engine has got the first weights, never computed wrongly.
"""

from __future__ import annotations

LOGIT_FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""What configs call a factor on the logits, and the power of it that multiplies them."""
SOFT_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
"""What configs call a soft cap of the logits."""
LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Values of `rope_type` whose factors depend on how long a sequence is."""
READ_ONCE = ("gpt_oss",)
"""Values of `model_type` of which vLLM takes up no later weights."""
TIED_HEADS = r"(?:^|\.)(?:lm_head|embed_out)\.weight$"
"""Names of the parameter that is a copy of the embeddings where a config ties them."""
EXPRESSED_BY_MASK = ("sliding_window", "position_ids", "cache_position")
"""Keywords of a layer's attention that PyTorch's may ignore: the mask and the positions that it gets hold what they
say."""
OUTPUT_SWITCHES = ("use_cache", "output_attentions", "output_router_logits")
"""Keywords that say what else to return."""
