"""Text: where it comes from, what is held out, and the token streams that training reads.

read_documents -> split -> train documents -> streams -> tokens_ST, a function of the step
                        -> held-out documents -> evaluation and baselines
"""
