"""The roles as Ray actors around DeepSpeed and vLLM: the one place that imports them."""
