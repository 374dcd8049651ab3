"""What training needs beside the network and its losses."""
