"""Ask models behind servers with the OpenAI chat API, such as vLLM, SGLang, llama.cpp and `transformers serve`."""
