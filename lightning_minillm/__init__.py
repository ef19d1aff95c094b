"""Knowledge distillation of language models with MiniLLM (arXiv 2306.08543) as PyTorch Lightning modules."""

__version__ = "0.1.0"
