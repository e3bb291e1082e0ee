//! What delivery counts.

use prometheus::{Histogram, IntCounterVec, Registry};
use quorumail_delivery::{Event, Observer, Receiver};
use quorumail_store::QueueClass;

use super::{Maker, Metrics, class_name};

/// Upper bounds of the time from acceptance to delivery, in seconds.
const DELIVERY_SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86400.0];

/// By class of the recipient.
pub(super) struct Delivery {
    recipients: IntCounterVec,
    seconds: Histogram,
}

impl Delivery {
    pub(super) fn new(registry: &Registry) -> Self {
        let make = Maker { registry, protocol: "delivery" };
        let seconds = make.histogram("seconds", "Time from acceptance to delivery.", &[], &DELIVERY_SECONDS);
        Self {
            recipients: make.counter(
                "recipients_total",
                "Recipients, by what came of them and who runs the server that their mail goes to.",
                &["class", "outcome", "receiver"],
            ),
            seconds: seconds.with_label_values::<&str>(&[]),
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, class: QueueClass, receiver: Receiver, event: Event) {
        let outcome = match event {
            Event::Delivered { after } => {
                self.delivery.seconds.observe(after.as_secs_f64());
                "delivered"
            }
            Event::Deferred => "deferred",
            Event::Bounced => "bounced",
            Event::Dropped => "dropped",
            Event::Bad => "bad",
        };
        self.delivery.recipients.with_label_values(&[class_name(class), outcome, receiver.name()]).inc();
    }
}
