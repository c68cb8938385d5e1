"""Reports as single HTML files: templates, bins of histograms and small SVG pictures, for all parts of megalm."""
