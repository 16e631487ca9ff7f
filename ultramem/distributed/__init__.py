"""Several processes on one run: tables by rows or columns, the trunk by FSDP2, in one visible order."""
