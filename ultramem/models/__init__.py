"""The models for Hugging Face's transformers. Importing this package makes the Auto classes know them."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.modeling_ultramem import UltraMemForCausalLM, UltraMemModel
from ultramem.models.outputs import UltraMemCausalLMOutput, UltraMemModelOutput

AutoConfig.register(UltraMemConfig.model_type, UltraMemConfig)
AutoModel.register(UltraMemConfig, UltraMemModel)
AutoModelForCausalLM.register(UltraMemConfig, UltraMemForCausalLM)

__all__ = ["UltraMemCausalLMOutput", "UltraMemConfig", "UltraMemForCausalLM", "UltraMemModel", "UltraMemModelOutput"]
