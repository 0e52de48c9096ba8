"""The board: a reader of run folders and a typist of commands. It imports no torch and holds no model.

Pages are drawn from the files of run folders, and change nothing but by starting `llmtune COMMAND` with a list of
arguments: what can be done here can be done in a terminal, and a run does not know whether anybody watches it.
"""
