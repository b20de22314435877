"""The collaborative stage's models: Section 2.3.1. They make the representations p_i and q_j of users and items."""
