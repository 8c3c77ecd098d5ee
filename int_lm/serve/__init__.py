"""A server with the OpenAI completions interface over an export: `python -m int_lm.serve`.

refusal.py   what a client is told when a request is refused
request.py   the body of a request, checked: `Wanted`
writing.py   one text: ids to characters, stop strings, log-probabilities
lanes.py     texts side by side in one batch of the NumPy runtime
worker.py    the thread that computes the batch, and the queue in front of it
app.py       the routes; it needs starlette
server.py    the socket, signals and the end; it needs uvicorn

All texts are computed in one batch, because a step costs NumPy little more for many texts than for
one. Every lane of it is exact, so that a text does not depend on what else is computed.
"""
