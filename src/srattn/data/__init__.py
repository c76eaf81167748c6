"""Labelled images: readers, splits, decoding, augmentation and batches."""

from srattn.data.decode import BadImage as BadImage
from srattn.data.decode import decode as decode
from srattn.data.loader import Batch as Batch
from srattn.data.loader import Loader as Loader
from srattn.data.preprocess import Preprocess as Preprocess
from srattn.data.reader import load_data as load_data
from srattn.data.samples import ImageData as ImageData
from srattn.data.samples import Samples as Samples
