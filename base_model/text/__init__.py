"""Text as the model reads it. In: a folder's tokenizer and a text. Out: tokens, prompts, facts to compare."""
