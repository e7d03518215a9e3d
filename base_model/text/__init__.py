"""Text as the model reads it. In: a folder's tokenizer, and a text or a data set. Out: tokens, prompts, lengths, facts
to compare.
"""
