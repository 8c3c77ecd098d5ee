"""Text: its sources, the held-out split, and the token streams that training reads.

read_documents -> split -> train documents -> streams -> tokens_ST, a function of the step
                        -> held-out documents -> evaluation and baselines
"""
