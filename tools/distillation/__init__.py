"""Block-removal distillation of Stable Diffusion 1.x U-Nets, as BK-SDM describes it and Segmind trained Tiny-SD.

Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023, https://arxiv.org/abs/2305.15798
"""
