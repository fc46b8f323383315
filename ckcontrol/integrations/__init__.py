"""ckcontrol in other people's chains: the model of a LangChain, LlamaIndex or Haystack program, steered."""
