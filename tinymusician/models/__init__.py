"""Teacher and student in PyTorch, how a student is cut out of its teacher, and the house band's own parts."""
