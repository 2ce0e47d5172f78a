"""RAFT: data refinement and adaptive on-policy distillation for domain fine-tuning with less forgetting.

Importing this package loads neither Ray, vLLM nor DeepSpeed; what runs on the cluster is in `actors`.
"""

__version__ = "0.1.0"
