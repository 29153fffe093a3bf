"""The sanity battery: what would make a robust accuracy untrue, such as masked gradients.

`battery` runs all checks and keeps what they found; `findings` has the types of what a check is asked and answers;
`probes` has the checks, but for those of gradients (`slopes`) and the one by a planted weakness (`plant`).
"""
