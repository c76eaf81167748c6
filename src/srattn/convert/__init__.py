"""Checkpoints: reading and writing every published layout, and pretrained weights through the hub."""

from srattn.convert.detect import detect_layout as detect_layout
from srattn.convert.load import LoadReport as LoadReport
from srattn.convert.load import load_checkpoint as load_checkpoint
from srattn.convert.pretrained import create_model as create_model
from srattn.convert.save import save_checkpoint as save_checkpoint
from srattn.convert.state import convert_state_dict as convert_state_dict
