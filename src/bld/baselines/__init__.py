"""What the paper compares with, behind one way of asking."""
