"""What the operations, the layer and training cost, beside their floors and their rivals."""
