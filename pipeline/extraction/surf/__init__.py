"""SURF: keypoints of the box-filtered Hessian and their descriptors.

Bay, Ess, Tuytelaars and Van Gool, "Speeded-up robust features (SURF)", CVIU 2008.
"""
