"""Pages for people over the routes that programs have: nothing is shown that cannot be asked.

pages.py      the pages: one HTML shell, styles and modules that a browser loads, no build step
routes.py     what the pages ask beside the other routes: overview, search, schema, diagnosis
overview.py   whether a use case is healthy, and why, in one sentence
ledger.py     the ledger's decisions, a stretch at a time, and whether its chain is whole
static/       what goes to the browser
"""
