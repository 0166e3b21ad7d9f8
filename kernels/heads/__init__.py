"""What an adapter computes: shapes, start, forward and backward."""
