"""Drawing: relations on images, and charts as SVG."""
