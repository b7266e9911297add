"""An endless stream of generated scenes with exact cameras, depth, correspondences and masks, to train networks on.

Everything is drawn from a seed and the number of a batch, in torch, on a CPU or a GPU, many scenes at a time: `solids`
draws what stands in a scene, `casting` finds what rays meet, `shading` gives it colours, `cameras` places views that
share what they see, `photos` makes photographs of pictures, and `batches` puts them together.
"""
