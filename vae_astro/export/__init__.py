"""A checkpoint for others: programs, ONNX, safetensors, a model card, a hub; inactive units cut."""

from vae_astro.export.card import model_card
from vae_astro.export.command import FORMATS, Exported, export_model
from vae_astro.export.hub import load_from_hub, push_to_hub
from vae_astro.export.prune import PrunedUnit, Pruning, prune
from vae_astro.export.weights import load_safetensors, save_safetensors

__all__ = [
    "FORMATS",
    "Exported",
    "PrunedUnit",
    "Pruning",
    "export_model",
    "load_from_hub",
    "load_safetensors",
    "model_card",
    "prune",
    "push_to_hub",
    "save_safetensors",
]
