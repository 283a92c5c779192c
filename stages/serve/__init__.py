"""The server: a run's models over HTTP, with OpenAI's and vLLM's request shapes, and a page to chat.

One thread (`engine`) owns the models. It decodes the rows of all requests together, one batch per model, and runs
scoring between turns. The HTTP side (`app`, `completions`, `scores`, `page`) never touches a model.
"""
