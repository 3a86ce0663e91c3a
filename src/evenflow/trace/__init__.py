"""One forward and backward pass, seen op by op.

``measure`` fills what is seen here with the statistics of real tensors,
``predict`` with those of imagined ones; both so give Flows with the same sites.
"""
